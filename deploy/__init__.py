"""Running a trained network: back ends, exported graphs, Predictor, folders of pictures, video."""
