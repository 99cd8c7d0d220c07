"""Pod networking, service load balancing and network policy of one node: objects in, kernel tables out."""
