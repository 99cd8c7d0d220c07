"""What more than one daemon needs: names, addresses, tables, errors, settings and the life of a process."""
