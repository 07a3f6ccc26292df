"""Data: prepared datasets made, checked, split and read; batches and augmentation."""
