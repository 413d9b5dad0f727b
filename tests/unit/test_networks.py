"""Networks: the contract, the paper's sizes, what preconditioning promises, linearity."""

import pytest
import torch

from locality.denoisers import WienerDenoiser
from locality.networks import (
    Classifier,
    DiT,
    LinearDenoiser,
    NetworkDenoiser,
    UNet,
    architecture,
    build,
)
from locality.schedule import ddpm_sigmas
from locality.stats import PCA

SHAPES = [(1, 28, 28), (3, 32, 32), (2, 8, 12)]


def raw(kind, shape):
    if kind == "linear":
        return LinearDenoiser(shape, rank=20, features=8)
    if kind == "dit":
        return DiT(shape[0], patch=4, width=16, depth=2, heads=2)
    return UNet(shape[0], channels=(8, 8, 16), groups=4)


def randomised(network):
    """The network with every zero-initialised layer filled, so that all its paths matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(params=["unet", "dit", "linear"])
def kind(request):
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_network_denoiser_keeps_the_contract(kind, shape):
    denoiser = NetworkDenoiser(randomised(raw(kind, shape)), sigma_data=0.5).eval()
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    one = denoiser(x, 0.7)
    assert one.shape == x.shape and one.dtype == torch.float32
    sigmas = torch.tensor([0.1, 0.7, 5.0])
    several = denoiser(x, sigmas)
    torch.testing.assert_close(several[1:2], one[1:2], atol=1e-5, rtol=1e-4)
    alone = denoiser(x[2:], 5.0)  # an image's answer does not depend on the rest of the batch
    torch.testing.assert_close(several[2:], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one[0], several[0], atol=1e-3)  # sigma matters


@pytest.mark.parametrize("parametrisation", ["edm", "eps"])
def test_every_parameter_gets_a_gradient(kind, parametrisation):
    shape = (1, 8, 8)
    network = randomised(raw(kind, shape))
    denoiser = NetworkDenoiser(network, sigma_data=0.5, parametrisation=parametrisation)
    x = torch.randn(2, *shape, requires_grad=True)
    denoiser(x, 0.5).square().sum().backward()
    assert x.grad.abs().sum() > 0
    silent = [n for n, p in denoiser.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize(
    ("shape", "millions"), [((1, 28, 28), 6.1), ((3, 32, 32), 80.0), ((3, 64, 64), 80.0)]
)
def test_the_paper_size_has_the_official_number_of_parameters(shape, millions):
    with torch.device("meta"):
        network = build(architecture("unet", shape, size="paper"))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 1) == millions


def test_laptop_sizes_are_small(kind):
    for shape in SHAPES[:2]:
        with torch.device("meta"):
            network = build(architecture(kind, shape))
        count = sum(parameter.numel() for parameter in network.parameters())
        assert 0.5e6 < count < 2e6


class Constant(torch.nn.Module):
    """A network that keeps its input and answers with a fixed image."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, label):
        self.x, self.label = x, label
        return self.answer


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0, 60.0])
def test_edm_gives_the_network_unit_input_and_unit_target(sigma):
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(200, 1, 16, 16, generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    network = Constant(torch.zeros(()))
    denoiser = NetworkDenoiser(network, sigma_data=0.5)
    answer = denoiser(x0 + sigma * noise, sigma)
    assert network.x.std().item() == pytest.approx(1, abs=0.02)
    # The squared error of x0_hat, weighted, is that of the network's output, here 0.
    weight = denoiser.loss_weight(torch.tensor([sigma]))
    assert (weight * (answer - x0).square().mean()).item() == pytest.approx(1, abs=0.03)


def test_edm_passes_low_noise_through_and_ignores_high_noise():
    x = torch.randn(1, 1, 4, 4)
    denoiser = NetworkDenoiser(Constant(torch.zeros(())), sigma_data=0.5)
    torch.testing.assert_close(denoiser(x, 1e-3), x, rtol=1e-4, atol=1e-4)
    assert denoiser(x, 1e3).abs().max() < 1e-5


def test_eps_turns_the_right_noise_into_the_right_image():
    x0, noise = torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    network = Constant(noise)
    denoiser = NetworkDenoiser(network, sigma_data=0.5, parametrisation="eps")
    sigma = 3.44
    torch.testing.assert_close(denoiser(x0 + sigma * noise, sigma), x0, atol=1e-5, rtol=1e-5)
    alpha_bar = 1 / (1 + sigma**2)
    expected = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise  # DDPM's x_t
    torch.testing.assert_close(network.x, expected, atol=1e-5, rtol=1e-5)


def test_eps_labels_are_ddpm_timesteps():
    network = Constant(torch.zeros(()))
    denoiser = NetworkDenoiser(network, sigma_data=0.5, parametrisation="eps")
    denoiser(torch.zeros(10, 1, 4, 4), ddpm_sigmas(10))
    expected = torch.arange(900, -1, -100.0)
    torch.testing.assert_close(network.label, expected, atol=0.02, rtol=0)


def test_the_linear_denoiser_is_affine_and_its_matrix_can_be_read_off():
    shape = (1, 4, 4)
    denoiser = NetworkDenoiser(randomised(LinearDenoiser(shape, features=8)), sigma_data=0.5)
    eye = torch.eye(16).view(16, *shape)
    bias = denoiser(torch.zeros(1, *shape), 0.6)
    matrix = (denoiser(eye, 0.6) - bias).flatten(1).T
    x = torch.randn(5, *shape)
    expected = x.flatten(1) @ matrix.T + bias.flatten()
    torch.testing.assert_close(denoiser(x, 0.6).flatten(1), expected, atol=1e-4, rtol=1e-4)


def test_a_wiener_filter_lies_in_the_linear_family(tiny):
    """Gains, bias and directions can be set so that the linear denoiser is the Wiener filter."""
    pca, sigma, sigma_data = PCA.fit(tiny), 0.4, 0.6
    network = LinearDenoiser(tiny.shape, features=8)
    denoiser = NetworkDenoiser(network, sigma_data=sigma_data)
    skip, out, scale, _ = (c.item() for c in denoiser.coefficients(torch.tensor(sigma)))
    shrink = pca.shrinkage(sigma)
    with torch.no_grad():
        network.directions.copy_(pca.eigenvectors.T)
        network.gains.bias.copy_(shrink / (out * scale))
        network.scale.bias.fill_(-skip / (out * scale))
        network.bias.bias.copy_((pca.mean - pca.wiener_matrix(sigma) @ pca.mean) / out)
    x = torch.randn(4, *tiny.shape)
    torch.testing.assert_close(
        denoiser(x, sigma), WienerDenoiser(pca)(x, sigma), atol=1e-4, rtol=1e-4
    )


def test_a_dit_knows_where_a_patch_is():
    denoiser = NetworkDenoiser(randomised(raw("dit", (1, 8, 8))), sigma_data=0.5)
    patches = denoiser(torch.zeros(1, 1, 8, 8), 0.5).unfold(2, 4, 4).unfold(3, 4, 4).reshape(4, 16)
    for other in range(1, 4):  # identical patches at different places get different answers
        assert not torch.allclose(patches[0], patches[other], atol=1e-3)


def test_a_classifier_gives_logits_of_its_features():
    model = Classifier(1, width=4).eval()
    x = torch.randn(3, 1, 28, 28)
    assert model.features(x).shape == (3, 16)
    torch.testing.assert_close(model(x), model.head(model.features(x)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NetworkDenoiser(UNet(1), sigma_data=0.0), "sigma_data must be positive, got 0"),
        (lambda: NetworkDenoiser(UNet(1), sigma_data=1, parametrisation="v"), "'v'"),
        (lambda: UNet(1, channels=(10, 20)), r"\(10, 20\).*groups=8"),
        (lambda: UNet(1)(torch.zeros(1, 1, 30, 28), torch.zeros(1)), r"by 4, got \(30, 28\)"),
        (lambda: DiT(1, patch=4)(torch.zeros(1, 1, 8, 6), torch.zeros(1)), r"by 4, got \(8, 6\)"),
        (lambda: DiT(1, width=30, heads=4), "width=30"),
        (lambda: LinearDenoiser((1, 4, 4), rank=17), "between 1 and 16, got 17"),
        (
            lambda: LinearDenoiser((1, 4, 4))(torch.zeros(1, 3, 4, 4), torch.zeros(1)),
            r"\(1, 4, 4\), got \(3, 4, 4\)",
        ),
        (lambda: NetworkDenoiser(UNet(1), sigma_data=1)(torch.zeros(4, 4), 1.0), r"\(4, 4\)"),
        (lambda: NetworkDenoiser(UNet(1), sigma_data=1)(torch.zeros(1, 1, 8, 8), -1.0), "-1"),
        (lambda: architecture("resnet", (1, 28, 28)), "'resnet'.*unet"),
        (lambda: architecture("dit", (1, 28, 28), size="paper"), "no paper size of 'dit'"),
        (lambda: build({"kind": "resnet"}), "'resnet'"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
