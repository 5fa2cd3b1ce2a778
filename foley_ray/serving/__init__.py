"""The service: the four stages as separately scaled Ray Serve deployments, and the HTTP face in front of them."""
