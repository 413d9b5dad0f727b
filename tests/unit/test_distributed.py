"""Several processes, each with a share of the images, give the answer of one with all of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from locality.cli import main
from locality.data import load
from locality.denoisers import LocalDenoiser, OptimalDenoiser, masks
from locality.schedule import ddpm_sigmas
from locality.stats import PCA, Moments

SIZE, COUNT = 14, 203  # shares of unequal size
WORKER = """
import sys
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from locality.data import load
from locality.denoisers import LocalDenoiser, OptimalDenoiser, masks
from locality.distributed import Sharded, fit_pca, share
from locality.schedule import ddpm_sigmas

dist.init_process_group("gloo")
own = share(load("fashion-mnist", n=203, size=14).images)
pca = fit_pca(own)
local = LocalDenoiser(own, lambda sigma: masks.pca(pca, sigma, 0.02), centre=pca.mean)
x0 = load("fashion-mnist", "test", n=3, size=14).images
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
found = {"eigenvalues": pca.eigenvalues}
for i, sigma in enumerate(ddpm_sigmas(10).tolist()):
    for name, denoiser in {"local": local, "optimal": OptimalDenoiser(own)}.items():
        found[f"{name}-{i}"] = Sharded(denoiser)(x0 + sigma * noise, sigma)
save_file(found, f"{sys.argv[1]}/{dist.get_rank()}.safetensors")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("ranks", ["forked, 2", "forked, 4"], indirect=True)
def test_shares_give_the_answer_of_the_whole(ranks, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    processes = ranks(str(script), str(tmp_path))
    images = load("fashion-mnist", n=COUNT, size=SIZE).images
    pca = PCA.fit(images)
    whole = {
        "local": LocalDenoiser(images, lambda sigma: masks.pca(pca, sigma, 0.02)),
        "optimal": OptimalDenoiser(images),
    }
    x0 = load("fashion-mnist", "test", n=3, size=SIZE).images
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for rank in range(processes):
        found = load_file(tmp_path / f"{rank}.safetensors")
        torch.testing.assert_close(found["eigenvalues"], pca.eigenvalues, atol=1e-5, rtol=0)
        for i, sigma in enumerate(ddpm_sigmas(10).tolist()):
            for name, denoiser in whole.items():
                error = (found[f"{name}-{i}"] - denoiser(x0 + sigma * noise, sigma)).abs().max()
                assert error < 1e-5, f"{name}, sigma {sigma:.3f}, process {rank}: {error:.1e}"


@pytest.mark.parametrize(
    ("ranks", "method"),
    [("forked, 2", "optimal"), ("forked, 4", "wiener"), ("torchrun, 2", "local")],
    indirect=["ranks"],
)
def test_the_command_line_shares_images_out(ranks, method, tmp_path):
    one, many = tmp_path / "one.png", tmp_path / "many.png"
    command = ["--images", "150", "--size", "8", "--samples", "3"]
    assert main(["sample", method, str(one), *command]) == 0
    ranks("-m", "locality", "sample", method, str(many), *command)
    pixels = [np.asarray(Image.open(path)).astype(int) for path in (one, many)]
    assert pixels[0].shape == (8, 3 * 8)
    assert np.abs(pixels[0] - pixels[1]).max() <= 1  # a rounding of a half


def test_moments_of_parts_merge_into_those_of_the_whole(small):
    whole = Moments.of(small)
    merged = Moments.of(small.images[:100]).merge(Moments.of(small.images[100:]))
    assert merged.count == whole.count and merged.shape == whole.shape
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.scatter, whole.scatter)


def test_a_state_that_is_no_exact_softmax_is_refused(tiny):
    x = tiny.images[:1]
    with pytest.raises(ValueError, match="batch_average is set"):
        LocalDenoiser(tiny, lambda _: masks.full(tiny.shape), batch_average=5).state(x, 1.0)
    with pytest.raises(ValueError, match="neighbours is set"):
        OptimalDenoiser(tiny, neighbours=5).state(x, 1.0)
