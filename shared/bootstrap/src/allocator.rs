//! The allocator of the services and of psp-sandbox. Its settings are compiled in: see
//! `.cargo/config.toml`.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;
