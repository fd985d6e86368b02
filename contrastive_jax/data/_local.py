"""Builders of data sets whose files are on this machine."""

from contrastive_jax._extras import needs

with needs("train", __name__):
    import tensorflow_datasets as tfds


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A builder that does not say that it downloads, as nothing is downloaded."""

    def _log_download_bytes(self) -> None:
        print(f"Preparing {self.name} in {self.data_dir}, at the first time alone")

    def _log_download_done(self) -> None:
        print(f"Prepared {self.name}")
