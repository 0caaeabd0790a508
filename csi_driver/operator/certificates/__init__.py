"""Creates, renews and rotates the certificates of agents, controllers and the webhook."""
