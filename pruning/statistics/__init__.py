"""What criteria need of the data: each collector adds up, batch by batch, and keeps no batch."""
