"""Reading and comparing the state of models, devices, random generators and torch itself."""
