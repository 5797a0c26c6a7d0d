"""Neural network building blocks: layers, encoders' trunks, value scales, action distributions."""
