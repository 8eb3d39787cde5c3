//! `<service> healthcheck`: asks the process that runs beside it whether it is ready. For images
//! that hold nothing but the service, no shell and no curl.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Command;

use crate::settings::Settings;

const NAME: &str = "healthcheck";
const DEADLINE: Duration = Duration::from_secs(2);

/// What came of it, if the command line asks for it. No other setting than `ADMIN_LISTEN` is
/// needed.
pub(crate) fn asked_for<S: Settings>() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != NAME {
        return None;
    }
    let about = "Asks the one that runs here whether it is ready";
    let command = S::command()
        .subcommand_negates_reqs(true)
        .subcommand(Command::new(NAME).about(about));
    let admin = command
        .get_matches()
        .get_one::<SocketAddr>("admin_listen")
        .copied();
    let ready = admin.context("ADMIN_LISTEN is not known").and_then(ask);
    Some(match ready {
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
    let status = lines.next().context("no answer")??;
    let body = lines.last().transpose()?.unwrap_or_default();
    ensure!(status.contains(" 200 "), "{status}: {body}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, net::TcpListener, thread};

    use super::*;

    fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _asked = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn only_ready_is_ready() {
        let everywhere =
            |address: SocketAddr| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
        ask(everywhere(answering("HTTP/1.0 200 OK\r\n\r\n{}"))).unwrap();
        let not = ask(answering(
            "HTTP/1.0 503 Service Unavailable\r\n\r\n{\"ready\":false}",
        ))
        .unwrap_err();
        assert_eq!(
            not.to_string(),
            "HTTP/1.0 503 Service Unavailable: {\"ready\":false}"
        );
        assert_eq!(ask(answering("")).unwrap_err().to_string(), "no answer");
    }
}
