"""One model split over the processes that torchrun starts."""
