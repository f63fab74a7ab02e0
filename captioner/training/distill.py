"""Finished runs that teach another: what they find likely, computed beside the student.

In: run folders, and the very pictures that the student sees, cropped and recolored alike (Beyer et al. 2022,
"Knowledge distillation: A good teacher is patient and consistent"). Out: steps that bring the student's words
close to the teachers', whose probabilities are averaged. Reads the run folders; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.models.decoder import CaptionDecoder
from captioner.models.device import find_device
from captioner.models.encoder import Encoder
from captioner.models.layers.attention_gru import Tensor
from captioner.models.layers.dropout import BatchDropout
from captioner.models.layers.packed_forward import packed_forward
from captioner.runs.run_folder import Run
from captioner.training.encoder_forward import frozen_cells
from captioner.training.losses import LossTerms, distillation_loss
from captioner.training.train_step import TrainStep


class Teachers:
    """The best epochs of runs.

    Args:
        folders: of the runs.
        vocabulary: the student's; each teacher's must have the same words in the same places.
        encoder: the student's; its cached features serve the teachers that have the same.
        precision: "float32" or "bfloat16", of matrix products.

    Raises:
        ConfigError: none is named, or one knows other words.
        RunError: a folder is no run, or is damaged.
    """

    def __init__(
        self, folders: Sequence[str], vocabulary: Vocabulary, encoder: Encoder, *, precision: str = "float32"
    ) -> None:
        if not folders:
            raise ConfigError(
                'objective = "distill" needs teachers = ["RUN", …], finished runs to learn from'
            )
        self.networks: list[tuple[CaptionDecoder, Encoder]] = []
        self.of_other_encoders: list[str] = []
        for folder in folders:
            run = Run.open(folder)
            if run.vocabulary.words != vocabulary.words:
                raise ConfigError(
                    f"teachers: {folder} has other words ({len(run.vocabulary)}) than the run it should "
                    f"teach ({len(vocabulary)}); train both with --from one run, or on the same captions"
                )
            found, own = run.load_best()
            if own.size != encoder.size:
                raise ConfigError(
                    f"teachers: {folder} looks at pictures of {own.size} pixels, the run it should teach at "
                    f"pictures of {encoder.size}; set encoder.size to the same"
                )
            if own.digest != encoder.digest:
                self.of_other_encoders.append(str(folder))
            decoder = CaptionDecoder(
                run.config.decoder,
                vocabulary_size=len(vocabulary),
                channels=own.channels,
                languages=len(vocabulary.languages),
                precision=precision,
            )
            decoder.load_weights_dict(found.weights_dict())
            self.networks.append((decoder, own))

    def probabilities(self, inputs: Tensor, words_in: Tensor, words_out: Tensor, weights: Tensor) -> Tensor:
        """(M, V) float32, the words to be written, in the rows of `packed_forward`.

        Args:
            inputs: (B, H, W, 3) pixels; or (B, P, C) features, where all have the student's encoder.
            words_in: (B, R, T), as are the next two.
            words_out: (B, R, T).
            weights: (B, R, T).

        Raises:
            ConfigError: features, and a teacher has another encoder.
        """
        if len(inputs.shape) == 3 and self.of_other_encoders:
            raise ConfigError(
                f"teachers: {', '.join(self.of_other_encoders)} with another encoder than the run to be "
                "taught must see the pictures; set augment = true, or train the encoder, too"
            )
        found = []
        for decoder, encoder in self.networks:
            cells = inputs
            if len(inputs.shape) == 4:
                cells = frozen_cells(encoder, inputs, find_device().frozen_encoder_batch)
            packed = packed_forward(decoder, (tf.cast(cells, tf.float32), words_in), words_out, weights)
            found.append(tf.nn.softmax(tf.cast(packed.logits, tf.float32)))
        return tf.stop_gradient(tf.add_n(found) / len(found))


class DistillStep(TrainStep):
    """Steps whose target is a mixture of what the teachers find likely and the caption's own word.

    The phase's `teacher_share` is the teachers' part of it.

    Args:
        of_step: as `TrainStep`.
        teachers: of the same words.
    """

    def __init__(self, *of_step: Any, teachers: Teachers) -> None:
        super().__init__(*of_step)
        self.teachers = teachers

    def _losses(
        self,
        inputs: list[Tensor],
        cells: list[Tensor],
        captions: Sequence[list[Tensor]],
        numbers: list[Any],
        dropout: BatchDropout,
    ) -> list[LossTerms]:
        taught = [self.teachers.probabilities(*part) for part in zip(inputs, *captions, strict=True)]
        packed = self._packed(cells, captions, numbers, dropout)
        return [
            distillation_loss(own, target, self.phase.teacher_share)
            for own, target in zip(packed, taught, strict=True)
        ]
