"""Errors for packages that only an extra of the library installs."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs(extra: str, module: str) -> Iterator[None]:
    """Names the extra to install where an import inside of this context finds no package.

        with needs("plots", __name__):
            from matplotlib.figure import Figure

    Args:
      extra: of pyproject.toml, such as `"plots"`.
      module: that imports the package.

    Raises:
      ImportError: from the context, with the module, the package and what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise ImportError(
            f"{module} needs {package}: pip install 'contrastive_jax[{extra}]'", name=package
        ) from error
