"""Choose, order, read and augment the images of a run."""
