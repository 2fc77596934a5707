"""The images of a run: which, in what order, with what augmentation."""
