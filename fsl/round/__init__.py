"""One round where it is computed: devices, edges, and the node that hosts them."""
