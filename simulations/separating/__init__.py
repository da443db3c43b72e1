"""What `fsl-separate` is made of."""
