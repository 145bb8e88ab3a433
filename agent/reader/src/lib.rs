//! Understands an engine's exposition: parser, engine readers, deltas, histograms. Pure: bytes in, values out.
