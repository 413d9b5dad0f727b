"""locality: the shared helpers of the hands-on book on locality in image diffusion models.

Data flows one way, and so do the imports:
data, schedule -> stats -> denoisers, networks -> training, zoo -> sampling, sensitivity -> metrics
-> scoreboard, cli -> book.
Every denoiser of the library, closed-form or trained, is called as ``denoiser(x, sigma)``
and returns an estimate of the clean image (variance-exploding noise, images in [-1, 1],
NCHW float32).
"""

__version__ = "0.1.0"
