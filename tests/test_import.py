"""Tests of what `import contrastive_jax` loads and names."""

import subprocess
import sys


def test_importing_loads_neither_data_nor_figures():
    code = (
        "import sys, contrastive_jax; "
        "heavy = {'tensorflow_datasets', 'tensorflow', 'matplotlib', 'grain', 'orbax', 'sklearn'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_first_page_of_the_library():
    import contrastive_jax

    for name in contrastive_jax.__all__:
        assert getattr(contrastive_jax, name) is not None
    assert contrastive_jax.losses.contrastive(0.5, 0, 1.0) == 0.25
