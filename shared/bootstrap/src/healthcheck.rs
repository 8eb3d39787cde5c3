//! `<service> healthcheck`: asks the process beside it whether it is ready. For images that contain
//! nothing but the service: no shell, no curl.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Parser;

const NAME: &str = "healthcheck";
const DEADLINE: Duration = Duration::from_secs(2);

/// Asks the process that runs here whether it is ready: exit code 0 if it is, else 1
#[derive(Parser)]
struct Healthcheck {
    /// Where health and metrics of that process listen
    #[arg(long, env = "ADMIN_LISTEN")]
    admin_listen: SocketAddr,
}

/// Runs the health check if `healthcheck` is the first argument. It is parsed apart from the
/// service's own settings, because it must work without them.
pub(crate) fn run_if_requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let program = arguments.next()?;
    if arguments.next()? != NAME {
        return None;
    }
    let Healthcheck { admin_listen } =
        Healthcheck::parse_from([program].into_iter().chain(arguments));
    Some(match ask(admin_listen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("not ready: {error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Asks `/readyz` at the admin listener.
fn ask(admin: SocketAddr) -> anyhow::Result<()> {
    let here = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let admin = SocketAddr::new(here, admin.port());
    let mut stream = TcpStream::connect_timeout(&admin, DEADLINE)
        .with_context(|| format!("connect to {admin}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(format!("GET /readyz HTTP/1.0\r\nHost: {admin}\r\n\r\n").as_bytes())?;
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next().context("no response")??;
    let body = lines.last().transpose()?.unwrap_or_default();
    ensure!(status.contains(" 200 "), "{status}: {body}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, net::TcpListener, thread};

    use super::*;

    fn responding(response: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _request = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(response.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn only_status_200_is_ready() {
        let unspecified =
            |address: SocketAddr| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
        ask(unspecified(responding("HTTP/1.0 200 OK\r\n\r\n{}"))).unwrap();
        let not = ask(responding(
            "HTTP/1.0 503 Service Unavailable\r\n\r\n{\"ready\":false}",
        ))
        .unwrap_err();
        assert_eq!(
            not.to_string(),
            "HTTP/1.0 503 Service Unavailable: {\"ready\":false}"
        );
        assert_eq!(ask(responding("")).unwrap_err().to_string(), "no response");
    }
}
