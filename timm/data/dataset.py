# Overlay: woven into upstream's timm/data/dataset.py when the package is built.
# Read the result in build/timm/data/dataset.py.
class ImageDataset(data.Dataset):

    @moved_from('__getitem__')
    def _load_sample(self, index):
        """Load a sample; if its file cannot be read, load the next one."""
        ...

    def __getitem__(self, index):
        for _ in range(self._max_retries):
            try:
                return self._load_sample(index)
            except Image.DecompressionBombError as e:  # unlike the errors of other unreadable images, not an OSError
                _logger.warning(f'Skipped sample (index {index}). {e}')
                index = (index + 1) % len(self.reader)
        raise RuntimeError(f"Failed to load {self._max_retries} samples")
