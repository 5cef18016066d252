"""What Transformers' Wav2Vec2 and its kin need, in whichever framework's model they are found."""
