"""The science on Ray: everything between a URL of image pairs and a student that enhances photographs."""
