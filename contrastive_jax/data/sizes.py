"""Sizes of arrays, checked before memory is allocated for them."""

import os


def check_fits(size: int, subject: str, remedy: str) -> None:
    """Checks that an array fits into the memory of this machine.

    Args:
      size: of the array in bytes.
      subject: what takes the memory, to begin the error with.
      remedy: what to do about it, to end the error with.

    Raises:
      ValueError: if the array is larger than the memory of the machine. Where the system does not
        say how large that is, any size passes.

    Example:
      >>> from contrastive_jax.data.sizes import check_fits
      >>> check_fits(1000, "ten images", "take fewer")
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if size > memory > 0:
        raise ValueError(
            f"{subject} take {size / 2**30:,.1f} GiB, and this machine has {memory / 2**30:,.1f} "
            f"GiB of memory; {remedy}"
        )
