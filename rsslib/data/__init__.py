"""Datasets: reading image files, the split on the device, augmentation."""
