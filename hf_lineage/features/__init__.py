"""Evidence from what models compute: features of probe inputs, their derivative, similarity of features."""
