"""The pretrained CIFAR-10 ResNet-20 on real images; tools/cifar10_acceptance.py does the same on all 10,000."""

from pathlib import Path

import pytest
import yaml
from scipy.stats import binomtest

from masksparse_deploy.core.config import DeployConfig, MaskOptions
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.learn.run import learn
from tests.requirements import REPOSITORY, SHARED_DATA, requires

# Accuracies of this checkpoint on all 10,000 test images, with batch-norm statistics from 2,000 training images.
DENSE = 0.9173
MAGNITUDE = 0.7120
MAGNITUDE_BATCH_NORM = 0.8376


@pytest.mark.slow
@requires(shared_data=True)
def test_resnet20(tmp_path: Path) -> None:
    prepare = load_factory("cifar10_acceptance:prepare", REPOSITORY / "tools")
    mask = MaskOptions(epochs=1, augment="shift-mirror", autocast="bfloat16")
    path = prepare(SHARED_DATA, tmp_path, mask, train_count=10_000, test_count=1000)
    config = DeployConfig.model_validate(yaml.safe_load(path.read_text()))
    # One pass over 10,000 images has 78 steps.
    report = learn(config.model, config.data, config.mask, folder=tmp_path, out=tmp_path)

    correct = {accuracy.method: accuracy.correct for accuracy in report.accuracies}
    # A thousand images are a sample of the ten thousand: the exact (Clopper-Pearson) interval around what they show must hold
    # the accuracy on all. At 99.9 % it is about 3 points to each side for the dense network and 5 for magnitude.
    for method, accuracy in (("dense", DENSE), ("magnitude", MAGNITUDE), ("magnitude + batch norm", MAGNITUDE_BATCH_NORM)):
        interval = binomtest(correct[method], 1000).proportion_ci(0.999)
        assert interval.low <= accuracy <= interval.high, (method, correct[method])
    assert correct["scores"] > correct["magnitude + batch norm"] > correct["magnitude"]
    assert report.weights_sha256_before == report.weights_sha256_after
    assert (report.convolutions.masked, report.convolutions.total) == (18, 19)
    assert [layer.name for layer in report.skipped] == ["conv1", "linear"]
