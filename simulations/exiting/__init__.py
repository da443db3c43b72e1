"""What `fsl-exits` is made of."""
