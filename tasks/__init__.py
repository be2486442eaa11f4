"""The pipeline's stages, one file each, and the packages they stand on."""
