"""g-SNR in other people's training loops; each module is imported only when asked for."""
