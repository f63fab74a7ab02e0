"""Optional parts, each an extra of the installation. They import the core; the core never imports them."""
