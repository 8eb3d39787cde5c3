//! What every main needs: telemetry, health, signals, pools, supervision, gRPC.
