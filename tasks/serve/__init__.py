"""A server of a registered model: `warmstart serve NAME@champion`."""
