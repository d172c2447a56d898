"""What clients and the server compute: operations, and how many seconds these take them."""
