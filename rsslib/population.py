"""The subnets on which every method is evaluated: buckets of sizes, and the corners of a space."""

RECALIBRATION_IMAGES = 2000  # training images from which a subnet's batch norm statistics are recomputed
