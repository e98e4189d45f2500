"""Edit cases from the photographs of the Grocery Store Dataset."""
