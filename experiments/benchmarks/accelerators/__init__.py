"""Programs of the library, compiled for accelerators that need not be there."""
