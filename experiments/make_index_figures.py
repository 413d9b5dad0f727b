"""Draws the two figures of the first page and of the README: same noise, and sensitivity fields.

Everything in them comes from the shipped images, the shipped principal components and the zoo. They
are seeded; run it again after the library or the zoo has changed:

    python experiments/make_index_figures.py
"""

from pathlib import Path

import matplotlib.pyplot as plt

from locality import zoo
from locality.book import plots
from locality.data import load
from locality.denoisers import LocalDenoiser, OptimalDenoiser, WienerDenoiser, masks
from locality.metrics import nearest_images
from locality.sampling import ddim, initial_noise
from locality.schedule import ddpm_sigmas
from locality.sensitivity import sensitivity
from locality.stats import PCA, load_basis

TARGET = Path(__file__).parents[1] / "book" / "_static" / "figures"
SEED, SAMPLES, THRESHOLD = 42, 8, 0.05


def same_noise() -> plt.Figure:
    """Samples of the perfect denoiser, the Wiener filter, the local one and a UNet, same noise."""
    train = load("fashion-mnist", "train")
    pca = PCA.fit(train)
    sigmas = ddpm_sigmas(10)
    noise = initial_noise(SAMPLES, train.shape, sigma=sigmas[0], seed=SEED)
    denoisers = {
        "optimal": OptimalDenoiser(train),
        "Wiener": WienerDenoiser(pca),
        "analytical local": LocalDenoiser(train, lambda s: masks.pca(pca, s, THRESHOLD)),
        "UNet": zoo.load("unet/fashion-mnist"),
    }
    samples = {name: [*ddim(d, noise, sigmas)][-1].x0 for name, d in denoisers.items()}
    copied = train.images[nearest_images(samples["optimal"], train)[1][:, 0]]
    rows = {"noise": noise / sigmas[0], "training images": copied, **samples}
    return plots.image_grid(rows, title="The same noise, four denoisers", scale=0.8)


def fields() -> plt.Figure:
    """Wiener fields of photographs, faces and clothes: one pixel, over the noise levels."""
    sets = {
        "photographs": PCA.fit(load("photos", size=32, gray=True)),
        "faces": load_basis("celeba-gray"),
        "clothes": PCA.fit(load("fashion-mnist")),
    }
    pixel, sigmas = (16, 11), ddpm_sigmas(10)[2:9:2]
    rows = {}
    for name, pca in sets.items():
        x = pca.mean.view(1, *pca.shape)
        rows[name] = [sensitivity(WienerDenoiser(pca), x, s, pixel)[0] for s in sigmas.tolist()]
    return plots.fields(
        rows,
        pixel=pixel,
        columns=plots.sigma_labels(sigmas),
        title="What one pixel looks at, as the noise falls",
        scale=1.3,
    )


def main() -> None:
    """Write both figures."""
    plots.use_style()
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, figure in {"same-noise": same_noise(), "fields": fields()}.items():
        figure.savefig(TARGET / f"{name}.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
