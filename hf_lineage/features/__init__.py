"""Evidence from what the models compute: features of probe inputs, their derivative, how alike they are."""
