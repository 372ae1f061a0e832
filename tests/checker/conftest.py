import pytest

from tests.checker.cases import Case, biased_pair, make_case, random_images


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A certificate that holds, for tests that only read it."""
    return make_case(tmp_path_factory.mktemp("certificate"), biased_pair(), random_images())
