"""World action models as data: streams, coupling, visibility, noise and sampling over one trunk."""
