"""The ops: schema, fake, autograd, eager backend and choice of backend, one module each."""
