"""What `fsl-compare-inference` is made of."""
