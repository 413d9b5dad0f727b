"""The scoreboard: every method against a trained network, from the same noise, by one protocol.

``prepare`` gathers what all methods of a data set are compared on, ``methods`` says what there is
to compare, ``score`` gives the numbers of any one denoiser, and ``run`` fills a results file, one
method at a time, skipping those that it holds already. `python -m locality score` is its door.
Sampling with the slowest takes hours: what a method has answered is kept as well, noise level by
noise level, until its numbers are there.
"""

import base64
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from . import zoo
from .data import ImageSet, load
from .denoisers import (
    Denoiser,
    ELSDenoiser,
    LocalDenoiser,
    OptimalDenoiser,
    PatchMixtureDenoiser,
    PSPCDenoiser,
    ScreenedELSDenoiser,
    SmoothedDenoiser,
    WienerDenoiser,
    WienerMixtureDenoiser,
    masks,
)
from .denoisers.sides import (
    KAMB_SIDES,
    KAMB_SIGMAS,
    PSPC_SHARES,
    PSPC_SIDES,
    PSPC_SIGMAS,
    by_noise_level,
)
from .metrics import bootstrap_interval, copy_ratio, frechet_distance, mse, pearson, r2
from .sampling import Step, ddim, initial_noise
from .schedule import ddpm_sigmas
from .sensitivity import autograd_rows
from .stats import PCA
from .training import digest, held_out_loss, write_atomically

SEED = 42  # of the noises that are scored; choose hyper-parameters on others
HELD_OUT = 2000  # real images that the Frechet distance compares samples with,
COMPARED = 64  # and the first samples that it takes: as many of every method
FEW = 300  # images of the machine that compares every patch with every other
SHOWN = 8  # samples kept with the numbers,
SHOWABLE = ("fashion-mnist", "fashion-mnist-full", "mnist")  # of sets that may be passed on
# The paper's thresholds; it has no set called celeba, but faces, CelebA-HQ.
PAPER_TAU = {
    "fashion-mnist": 0.005,
    "mnist": 0.005,
    "cifar10": 0.05,
    "celeba": 0.02,
    "afhq-cat": 0.02,
}
TAUS = (0.005, 0.02, 0.05, 0.1)
CFDM_WIDTHS = (1.0, 2.0, 4.0)
GUIDANCE = (0.4, 1.0)
# The Wiener mixtures, chosen by experiments/tune_mixture.py for each data set, on seeds that are
# not scored; other sets take those of a kindred one (KINDRED). The window is |R|^power below the
# noise level `opening`, and wider above.
MIXTURES = {
    "fashion-mnist": {
        "components": 100,
        "rank": 200,
        "pseudo_count": 20,
        "power": 0.5,
        "opening": 2.0,
        "rounds": 0,
    },
    "mnist": {
        "components": 300,
        "rank": 200,
        "pseudo_count": 6,
        "power": 0.5,
        "opening": 2.0,
        "rounds": 3,
    },
    "cifar10-gray": {
        "components": 100,
        "rank": 300,
        "pseudo_count": 300,
        "power": 0.0625,
        "opening": 2.0,
        "rounds": 3,
    },
    "cifar10": {
        "components": 30,
        "rank": 300,
        "pseudo_count": 300,
        "power": 0.25,
        "opening": 2.0,
        "rounds": 3,
    },
    "celeba": {
        "components": 100,
        "rank": 200,
        "pseudo_count": 20,
        "power": 0.5,
        "opening": 2.0,
        "rounds": 3,
    },
}
# Below PARTNER_BELOW a partner has a share in the mixture's answer: a mixture of patches, chosen
# there, too, a local softmax under soft masks, or PSPC with published sides.
PATCHES = {
    "fashion-mnist": {
        "share": 0.5,
        "side": 5,
        "components": 100,
        "pseudo_count": 50,
    },
    "mnist": {
        "share": 0.75,
        "side": 5,
        "components": 100,
        "pseudo_count": 50,
    },
    "cifar10-gray": {
        "share": 0.5,
        "side": 8,
        "components": 100,
        "pseudo_count": 50,
    },
    "cifar10": {
        "share": 0.75,
        "side": 5,
        "components": 100,
        "pseudo_count": 50,
    },
    "celeba": {
        "share": 0.5,
        "side": 5,
        "components": 100,
        "pseudo_count": 50,
    },
}
PARTNER_BELOW, SOFT_SHARE, PSPC_SHARE = 1.0, 0.5, 0.5
# As sharp as the local denoiser, or nearly: below a noise level a partner has a share in the
# mixture's answer, and all is guided away from the Wiener filter, or the last answer evened out.
# Chosen by experiments/tune_sharpness.py, on seeds that are not scored.
SHARP_TAU = 0.05
SHARP = {
    "fashion-mnist": {"partner": "local-0.05", "below": 3.0, "share": 1.0, "weight": 0.2},
    "mnist": {"partner": "local-0.05", "below": 3.0, "share": 0.5, "weight": 0.4},
    "cifar10-gray": {"partner": "local-0.05", "below": 3.0, "share": 1.0, "weight": 0.2},
    "cifar10": {"partner": "pspc-square", "below": 1.0, "share": 0.5, "weight": 0.4},
    "celeba": {"partner": "local-0.05", "below": 3.0, "share": 0.5, "weight": 0.0, "even": True},
    "afhq-cat": {"partner": "pspc-square", "below": 1.0, "share": 0.5, "weight": 0.0, "even": True},
}
# Noises that say how to even out, from this seed on: neither scored nor chosen on.
EVEN_SEED, EVEN_NOISES = 2000, 64
LARGEST_GAIN = 4.0  # at most so far is a component stretched
# Sets for which no mixture was chosen and no patch sides were published, and whose they take. Other
# sets take the mixture of Fashion-MNIST.
KINDRED = {"afhq-cat": "celeba"}
# Faces and cats have no classes to tell apart: features of coloured objects must do for them.
JUDGES = {"celeba": "cifar10", "afhq-cat": "cifar10"}
RELEASED_BATCH = 512  # images a batch in the paper's released code


@dataclass(frozen=True)
class Bench:
    """What the methods of one data set are compared on; see `prepare`.

    Attributes:
        name: of the network, for example unet/fashion-mnist.
        folder: where it and its siblings are.
        network: the one to be predicted.
        train: the images that methods are made of.
        held_out: real images that neither network nor methods hold, (n, C, H, W).
        noise: unit noise times the first noise level, one a seed, (seeds, C, H, W).
        trajectory: the network's own steps from that noise.
        queries: seeds on whose trajectories, and held-out images on which, methods are compared.
        features: of images, for the Frechet distance; None where the zoo has no classifier.
        settings: what the numbers depend on, beside the method.
    """

    name: str
    folder: str | Path
    network: Denoiser
    train: ImageSet
    held_out: Tensor
    noise: Tensor
    trajectory: list[Step]
    queries: int
    features: Callable[[Tensor], Tensor] | None
    settings: dict

    @property
    def sigmas(self) -> list[float]:
        """The noise levels of the protocol, high to low."""
        return [step.sigma for step in self.trajectory]

    @property
    def data(self) -> str:
        """What the network has learnt, for example cifar10-gray."""
        return self.name.split("/")[-1]

    @cached_property
    def pca(self) -> PCA:
        """Statistics of the training images, on their device."""
        return PCA.fit(self.train).to(self.train.images.device)

    @cached_property
    def reference(self) -> Tensor:
        """Features of the held-out images, (n, features)."""
        return self.features(self.held_out)


def prepare(
    name: str,
    *,
    images: int | None = None,
    seeds: int = 128,
    queries: int = 16,
    steps: int = 10,
    folder: str | Path = zoo.ZOO,
    device: torch.device | str = "cpu",
) -> Bench:
    """The bench of one network of the zoo or of a ``folder``.

    Args:
        images: only the first ones of the network's training set; None for all.
        seeds: noises to sample from; noise i is the same for every number of seeds.
        queries: this many of them, and of the held-out images, for the curves over the noise
            level, each of which takes a method as long as to sample as many.
        steps: of the DDIM sampler; 10 is the paper's protocol.

    Raises:
        ValueError: if there is no such network, it was trained on a part of a set or on altered
            images, or there are fewer than two seeds or queries.
    """
    if min(seeds, queries) < 2:
        raise ValueError(f"need at least 2 seeds and queries, got {seeds} and {queries}")
    card = zoo.card(name, folder=folder)
    if altered := sorted({"part", "shape"} & set(card["data"])):
        raise ValueError(
            f"{name} was trained on images that are not a set's first ones (its card's data has "
            f"{', '.join(altered)}): there is no bench for it"
        )
    network = zoo.load(name, device=device, folder=folder)
    channels, side, _ = card["shape"]
    images = card["data"]["images"] if images is None else images
    data = card["data"]["name"]
    if data == "fashion-mnist-full" and images <= 10_000:
        data = "fashion-mnist"  # the same images, and they ship with the package
    options = {"size": side, "gray": channels == 1}
    train = load(data, n=images, **options)
    train = ImageSet(train.images.to(device), train.labels, train.name)
    held_out = load(data, "test", **options).images[:HELD_OUT].to(device)
    sigmas = ddpm_sigmas(steps)
    noise = initial_noise(seeds, train.shape, sigma=sigmas[0], seed=SEED, device=device)
    learnt = name.split("/")[-1]
    classifier = f"classifier/{JUDGES.get(learnt, learnt)}"
    features = None
    if classifier in zoo.names():
        features = zoo.load(classifier, device=device).features
    settings = {
        "network": name,
        "network_sha256": card["sha256"],
        "data": data,
        "images": images,
        "data_sha256": digest(train.images),
        "steps": steps,
        "seed": SEED,
        "seeds": seeds,
        "queries": min(queries, seeds),
    }
    return Bench(
        name=name,
        folder=folder,
        network=network,
        train=train,
        held_out=held_out,
        noise=noise,
        trajectory=list(ddim(network, noise, sigmas)),
        queries=settings["queries"],
        features=features,
        settings=settings,
    )


def methods(bench: Bench) -> dict[str, Callable[[], Denoiser]]:
    """Every method there is for a bench, by name, as a function that makes its denoiser."""
    images, side = bench.train, bench.train.shape[1]
    data = bench.data
    base = data.removesuffix("-gray")
    made = {
        "optimal": lambda: OptimalDenoiser(images),
        # At every noise level the training image nearest to the noisy one.
        "nearest": lambda: OptimalDenoiser(images, neighbours=1),
        "wiener": lambda: WienerDenoiser(bench.pca),
        "soft": lambda: LocalDenoiser(images, lambda sigma: masks.soft(bench.pca, sigma)),
        "wiener-mixture": partial(_mixture, bench),
        "wiener-mixture-soft": lambda: paired(_mixture(bench), made["soft"](), SOFT_SHARE),
        "wiener-mixture-patch": lambda: with_patches(
            _mixture(bench), images, **chosen(PATCHES, data)
        ),
        # One share for all sets: the better of those in experiments/tune_sharpness.py.
        "wiener-mixture-pspc": lambda: paired(_mixture(bench), made["pspc-square"](), PSPC_SHARE),
        "wiener-mixture-sharp": lambda: sharpened(bench, made, **chosen(SHARP, data)),
        "pspc-square": lambda: PSPCDenoiser(images, lambda sigma: _pspc_side(sigma, side)),
        "pspc-flex": lambda: PSPCDenoiser(images, cache(partial(_flex_patches, bench))),
        # As many pixels as in PSPC-Square, where the data say; and of every patch its centre only.
        "pspc-wiener": lambda: PSPCDenoiser(images, cache(partial(_wiener_patches, bench))),
        "ls-wiener": lambda: LocalDenoiser(images, partial(_wiener_mask, bench)),
    }
    for weight in GUIDANCE:
        made[f"wiener-mixture-patch-guided-{weight:g}"] = lambda weight=weight: guided(
            made["wiener-mixture-patch"](), made["wiener"](), weight
        )
    for width in CFDM_WIDTHS:
        made[f"sigma-cfdm-{width:g}"] = partial(SmoothedDenoiser, OptimalDenoiser(images), width)
    for tau in TAUS:
        made[f"local-{tau}"] = partial(_local, bench, masks.pca, tau)
    for tau in dict.fromkeys((PAPER_TAU.get(base, 0.02), 0.02)):
        official = partial(_local, bench, masks.pca_official, tau)
        made[f"released-{tau}"] = partial(official, batch_average=RELEASED_BATCH)
        made[f"released-{tau}-exact"] = official
    published = KAMB_SIDES.get(KINDRED.get(base, base))
    if published is not None:
        sides = by_noise_level(KAMB_SIGMAS, published)
        made["ls-published"] = partial(_square, images, sides)
        made["bbels-published"] = partial(ScreenedELSDenoiser, images, sides, boundary="broken")
        # As in the authors' released code: queries wrap around, patches lie whole in their image.
        widest = side - 1 + side % 2
        made["els-released"] = partial(
            ScreenedELSDenoiser,
            images,
            lambda sigma: min(sides(sigma), widest),
            boundary="complete",
        )
        few = images.images[:FEW]
        made[f"bbels-published-{FEW}"] = partial(ELSDenoiser, few, sides, boundary="broken")
    measured = Path(bench.folder) / f"{bench.name}.sides.json"
    if measured.exists():
        for method in json.loads(measured.read_text())["methods"]:
            sides = zoo.sides(bench.name, method, folder=bench.folder)
            if method == "ls":
                made["ls-calibrated"] = partial(_square, images, sides)
            elif method == "pspc":
                made["pspc-calibrated"] = partial(PSPCDenoiser, images, sides)
    for other in zoo.names(folder=bench.folder):
        other_kind, _, other_data = other.partition("/")
        if other_data == data and other_kind != "classifier":
            made[other_kind] = partial(
                zoo.load, other, device=bench.noise.device, folder=bench.folder
            )
    if published is not None:  # last: more than a minute a sample
        made["els-published"] = partial(ScreenedELSDenoiser, images, sides, boundary="circular")
    return made


def paired(
    mixture: Denoiser, partner: Denoiser, share: float, *, below: float = PARTNER_BELOW
) -> Denoiser:
    """``mixture``, and at noise levels ``below`` a ``share`` of ``partner`` in its answer."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if sigma >= below:
            return mixture(x, sigma)
        return (1 - share) * mixture(x, sigma) + share * partner(x, sigma)

    return denoise


def guided(denoiser: Denoiser, weaker: Denoiser, weight: float) -> Denoiser:
    """``denoiser``, and ``weight`` times what sets it apart from a ``weaker`` one: sharper.

    Karras et al. (2024) guide a network away from a bad version of itself in this way.
    """
    return lambda x, sigma: (1 + weight) * denoiser(x, sigma) - weight * weaker(x, sigma)


def evened(denoiser: Denoiser, bench: Bench) -> Denoiser:
    """``denoiser``, whose last answer keeps as much of every component's variance as of the whole.

    A few coarse steps leave samples a share of the data's variance, a network's too; where a
    denoiser blurs, principal components keep less of theirs. Here those are stretched to the share
    that all together keep. Samples from noises of their own say how far; no network is asked. The
    last answer is the image: at all other noise levels nothing changes.
    """
    pca = bench.pca
    noise = initial_noise(
        EVEN_NOISES,
        bench.train.shape,
        sigma=bench.sigmas[0],
        seed=EVEN_SEED,
        device=bench.noise.device,
    )
    *_, last = ddim(denoiser, noise, bench.sigmas)
    kept, whole = shares_kept(last.x0, pca)
    gains = (whole / kept.clamp(min=1e-12)).sqrt().clamp(1, LARGEST_GAIN)
    gains = gains.to(last.x0.dtype).to(last.x0.device)  # not every accelerator has float64

    def denoise(x: Tensor, sigma: float) -> Tensor:
        answer = denoiser(x, sigma)
        if sigma > bench.sigmas[-1]:
            return answer
        stretched = pca.mean + pca.apply(gains, answer.flatten(1) - pca.mean)
        return stretched.view_as(x)

    return denoise


def shares_kept(images: Tensor, pca: PCA) -> tuple[Tensor, float]:
    """How much of the data's variance images (n, C, H, W) keep: by component (D,), and in all.

    Component i stands for components 0.8 i to 1.25 i together: a few images do not tell that of a
    single one. Float64, on the CPU.
    """
    variances = ((images.flatten(1) - pca.mean) @ pca.eigenvectors).square().mean(0)
    ours, data = (v.to("cpu", torch.float64) for v in (variances, pca.eigenvalues))
    places = torch.arange(len(ours))
    low, high = (0.8 * places).long(), (1.25 * places).long().clamp(max=len(places) - 1) + 1
    near_ours, near_data = (pad(v.cumsum(0), (1, 0)) for v in (ours, data))
    near_ours, near_data = (v[high] - v[low] for v in (near_ours, near_data))
    return near_ours / near_data.clamp(min=1e-12), (ours.sum() / data.sum()).item()


def sharpened(
    bench: Bench,
    made: dict[str, Callable[[], Denoiser]],
    partner: str,
    *,
    below: float,
    share: float,
    weight: float,
    even: bool = False,
) -> Denoiser:
    """The mixture, paired with a method and guided away from the Wiener filter; see `methods`.

    Last, if ``even``, it is `evened`.
    """
    pair = paired(made["wiener-mixture"](), made[partner](), share, below=below)
    sharp = guided(pair, made["wiener"](), weight)
    return evened(sharp, bench) if even else sharp


def with_patches(
    mixture: Denoiser, images: ImageSet, *, share: float, side: int, **fit: float
) -> Denoiser:
    """``mixture``, paired with a mixture of patches of the images."""
    return paired(mixture, PatchMixtureDenoiser(images, side, **fit), share)


def _local(bench: Bench, mask: Callable, tau: float, **options) -> LocalDenoiser:
    return LocalDenoiser(bench.train, lambda sigma: mask(bench.pca, sigma, tau), **options)


def _mixture(bench: Bench) -> WienerMixtureDenoiser:
    return wiener_mixture(bench.train, bench.pca, data=bench.data)


def chosen(table: dict[str, dict], data: str) -> dict:
    """The parameters in MIXTURES, PATCHES or SHARP that a data set takes."""
    return dict(table.get(data) or table[KINDRED.get(data, "fashion-mnist")])


def wiener_mixture(
    images: ImageSet | Tensor, pca: PCA, *, data: str = "fashion-mnist"
) -> WienerMixtureDenoiser:
    """The Wiener mixture of ``images`` with the parameters that were chosen for a data set."""
    fit = chosen(MIXTURES, data)
    window = mixture_window(pca, fit.pop("power"), fit.pop("opening"))
    fit["rank"] = min(fit["rank"], len(pca.mean))
    return WienerMixtureDenoiser.fit(images, pca, window=window, **fit)


def mixture_window(pca: PCA, power: float, opening: float) -> Callable[[float], Tensor]:
    """The window |R|^p: p is ``power`` below the noise level ``opening``, and falls above it."""
    return lambda sigma: masks.soft(pca, sigma, power=power * opening / max(sigma, opening))


def _square(images: ImageSet, sides: Callable[[float], int]) -> ELSDenoiser:
    """LS by box filters: windows that are compared with none elsewhere."""
    return ELSDenoiser(images, sides, boundary="broken", stride=max(images.shape))


def _pspc_side(sigma: float, widest: int) -> int:
    return min(by_noise_level(PSPC_SIGMAS, PSPC_SIDES)(sigma), widest)


def _flex_patches(bench: Bench, sigma: float) -> Tensor:
    """Patches of PSPC-Flex: at every pixel the top share of the network's own sensitivity."""
    share = by_noise_level(PSPC_SIGMAS, PSPC_SHARES)(sigma)
    clean = bench.train.images[:4]
    if share == 1:  # a patch that is the whole image
        return torch.ones(1, clean[0, 0].numel(), device=bench.noise.device)
    generator = torch.Generator().manual_seed(0)
    x = clean + sigma * torch.randn(clean.shape, generator=generator).to(clean)
    rows = autograd_rows(bench.network, x, sigma, range(clean[0].numel()))
    return masks.top_share(torch.stack([_over_channels(r, bench) for r in rows]).mean(0), share)


def _wiener_patches(bench: Bench, sigma: float) -> Tensor:
    """At every pixel as many places as a patch of PSPC-Square holds, but where the data say.

    They are those on which the Wiener filter's answer depends most, and the pixel itself. That its
    field is the network's is what the paper found; here patches are made of it, without a network.
    """
    height, width = bench.train.shape[1:]
    side = _pspc_side(sigma, height)
    if side == height:
        return torch.ones(1, height * width, device=bench.noise.device)
    fields = _wiener_fields(bench, sigma)
    return masks.top_places(fields.fill_diagonal_(fields.max()), side**2)


def _wiener_mask(bench: Bench, sigma: float) -> Tensor:
    """The same patches as a mask, in all channels."""
    channels, height, width = bench.train.shape
    patches = _wiener_patches(bench, sigma)
    return patches.expand(height * width, -1).repeat(channels, channels)


def _wiener_fields(bench: Bench, sigma: float) -> Tensor:
    """How far every pixel depends on every other, relative to itself, (H W, H W)."""
    return _over_channels(masks.response(bench.pca, sigma), bench)


def _over_channels(rows: Tensor, bench: Bench) -> Tensor:
    """(D, D) as (H W, H W): one field a pixel over all channels, as in `sensitivity`."""
    channels, height, width = bench.train.shape
    blocks = rows.view(channels, height * width, channels, height * width)
    return blocks.square().sum((0, 2)).sqrt()


class _Kept:
    """A denoiser that keeps its answers, one a noise level, and in a file if there is a path.

    What a file of these settings holds is not computed again, so sampling that was stopped goes on
    where it was. For one way from one noise only: an answer is known by its sigma.
    """

    def __init__(self, denoiser: Denoiser, bench: Bench, path: Path | None):
        self.denoiser, self.path = denoiser, path
        self.clock = time.process_time if bench.noise.device.type == "cpu" else time.perf_counter
        self.settings, self.seconds = json.dumps(bench.settings), 0.0
        self.answers: dict[str, Tensor] = {}
        if path is None or not path.exists():
            return
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                if about.get("settings") == self.settings:
                    self.answers = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                    self.seconds = float(about["seconds"])
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged: {error}; delete it to start anew") from error

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        key = str(sigma)
        if key not in self.answers:
            began = self.clock()
            # A copy: a file takes no views, and no memory twice.
            answer = self.denoiser(x, sigma).cpu()
            self.answers[key] = answer.clone(memory_format=torch.contiguous_format)
            self.seconds += self.clock() - began
            if self.path is not None:
                about = {"settings": self.settings, "seconds": str(self.seconds)}
                write_atomically(self.path, lambda part: save_file(self.answers, part, about))
        return self.answers[key].to(x.device)


@torch.no_grad()
def score(denoiser: Denoiser, bench: Bench, *, kept: Path | None = None) -> dict:
    """All numbers of one denoiser.

    Args:
        kept: a file for the answers on the way to the samples. If it is there, and of a bench of
            the same settings, sampling goes on where it was.

    Returns:
        A dictionary, whose r2, Pearson and MSE are against the network's samples.
        "r2", "pearson", "mse": mean over seeds and 95 % bootstrap interval, {"mean", "low",
        "high"}. "r2_by_seed": one a seed, for comparisons in pairs. "curves": a dictionary of
        lists over its "sigma": "trajectory_r2", with "_low" and "_high" as well, of the clean image
        that the denoiser and the network see in the same noisy image on the network's way; and
        "held_out_mse" on real images. "copies": the median copy ratio and the share below 1/3,
        against the training images of the bench. "frechet": of the first 64 samples to real
        images, None without a classifier or with fewer samples. "seconds": a sample, of
        CPU time (all threads together) on a CPU, of wall time elsewhere. "samples": the first
        images as text (see `samples`), None for sets that may not be passed on.
    """
    sampled = _Kept(denoiser, bench, kept)
    *_, last = ddim(sampled, bench.noise, bench.sigmas)
    x0 = last.x0.cpu()
    truth = bench.trajectory[-1].x0
    result = {metric.__name__: _summary(metric(x0, truth)) for metric in (r2, pearson, mse)}
    result["r2_by_seed"] = [round(v, 4) for v in r2(x0, truth).tolist()]
    result["curves"] = _curves(denoiser, bench)
    ratios = copy_ratio(last.x0, bench.train)
    result["copies"] = {
        "median": _round(ratios.median().item()),
        "share": _round((ratios < 1 / 3).float().mean().item()),
    }
    result["frechet"] = None
    if bench.features is not None and len(x0) >= COMPARED:
        found = frechet_distance(bench.features(last.x0[:COMPARED]), bench.reference)
        result["frechet"] = _round(found)
    result["seconds"] = _round(sampled.seconds / len(x0))
    shown = bench.settings["data"] in SHOWABLE
    pixels = ((x0[:SHOWN] + 1) * 127.5).round().byte().contiguous()
    result["samples"] = base64.b64encode(pixels.numpy().tobytes()).decode() if shown else None
    return result


def _curves(denoiser: Denoiser, bench: Bench) -> dict[str, list[float]]:
    """What `score` gives over the noise level; of a finer protocol, at about ten of its levels."""
    steps = bench.trajectory[:: max(1, len(bench.trajectory) // 10)]
    few = bench.queries
    sigmas = [step.sigma for step in steps]
    found = [
        _summary(r2(denoiser(step.x[:few], step.sigma).clamp(-1, 1), step.x0[:few]))
        for step in steps
    ]
    return {
        "sigma": [_round(s) for s in sigmas],
        "trajectory_r2": [f["mean"] for f in found],
        "trajectory_r2_low": [f["low"] for f in found],
        "trajectory_r2_high": [f["high"] for f in found],
        "held_out_mse": [_round(v) for v in held_out_loss(denoiser, bench.held_out[:few], sigmas)],
    }


def _summary(values: Tensor) -> dict[str, float]:
    low, high = bootstrap_interval(values)
    return {"mean": _round(values.mean().item()), "low": _round(low), "high": _round(high)}


def _round(value: float) -> float:
    """Five significant digits: what is stored does not pretend to more."""
    return float(f"{value:.5g}")


def run(bench: Bench, wanted: Sequence[str] | None, *, output: str | Path) -> Iterator[dict]:
    """Score ``wanted`` methods (None for all) into the file ``output``; yields each new entry.

    The file is written whole after every method, atomically. A method is skipped if the file holds
    it with the same settings, and what it has answered so far is kept in a file beside, so an
    interrupted run continues where it was.

    Raises:
        ValueError: if there is no method of a wanted name.
    """
    output, makers = Path(output), methods(bench)
    for method in wanted or makers:
        if method not in makers:
            raise ValueError(f"no method {method!r}; there are: {', '.join(makers)}")
    for method in wanted or makers:
        settings = {"method": method, **bench.settings}
        if any(entry["settings"] == settings for entry in _entries(output)):
            continue
        kept = output.with_name(f"{output.name}.{method}.part")
        result = score(makers[method](), bench, kept=kept)
        entry = {"settings": settings, **result, "made_with": _versions()}
        entries = _entries(output)  # again: another process may have added some in the meantime
        entries.append(entry)
        text = json.dumps({"entries": entries}, indent=1) + "\n"
        write_atomically(output, lambda part, text=text: part.write_text(text))
        kept.unlink(missing_ok=True)  # another process may have made the same entry
        yield entry


def _entries(path: Path) -> list[dict]:
    return read(path) if path.exists() else []


def read(path: str | Path) -> list[dict]:
    """The entries of a results file, in the order in which they were made."""
    return json.loads(Path(path).read_text())["entries"]


def samples(entry: dict, shape: tuple[int, int, int]) -> Tensor:
    """The sampled images (n, C, H, W) that an entry keeps, in [-1, 1], to 1/255.

    Raises:
        ValueError: if it keeps none, because the set's images may not be passed on.
    """
    if entry["samples"] is None:
        raise ValueError(f"no samples of {entry['settings']['data']} are kept, by its licence")
    pixels = torch.frombuffer(bytearray(base64.b64decode(entry["samples"])), dtype=torch.uint8)
    return pixels.view(-1, *shape) / 127.5 - 1


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }
