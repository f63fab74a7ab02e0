"""What the decoder and the encoders are made of: the recurrence, packed captions, products in mixed
precision, depthwise convolution. Each is a faster equal of something plain, and a test holds it to
that.
"""
