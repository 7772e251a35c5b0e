//! Requests to the kernel's routing netlink, over the one connection that the manager holds.
//!
//! rtnetlink's own request builders cover most of what we need but each is one request; here requests are built as
//! messages, so that all attributes of a link travel in one, and errors carry what was attempted.

use std::thread::JoinHandle;

use futures_util::StreamExt;
use rtnetlink::{
    Handle,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::{InfoData, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage},
        route::RouteMessage,
    },
};
use tokio::sync::oneshot;

use super::error::{Error, Result};

/// How often a dump that was overtaken by changes is begun anew before its last result is taken as it is.
const DUMP_TRIES: usize = 5;

/// A routing netlink connection in the network namespace of the thread that opened it.
///
/// It has a thread of its own: the kernel carries a request out in the very sendto(2), and deleting a link takes it
/// several grace periods (netdevice: `unregister_netdevice_many`), in which the daemon would serve nobody.
#[derive(Debug)]
pub(super) struct Rtnl {
    handle: Handle,
    connection: JoinHandle<()>,
    /// Dropped, it ends the thread.
    _end: oneshot::Sender<()>,
}

impl Rtnl {
    /// Opens the connection.
    pub fn open() -> Result<Self> {
        let failed = |e| Error::system("cannot open a netlink socket", e);
        let (opened, opening) = std::sync::mpsc::sync_channel(1);
        let (end, ended) = oneshot::channel();
        // A new thread is in the network namespace of the one that makes it (namespaces(7)).
        let drive = move || {
            let open = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
                let (connection, handle, _messages) = runtime.block_on(async { rtnetlink::new_connection() })?;
                Ok((runtime, connection, handle))
            };
            match open() {
                Ok((runtime, connection, handle)) => {
                    let _ = opened.send(Ok(handle));
                    runtime.block_on(async {
                        tokio::select! {
                            () = connection => {}
                            _ = ended => {}
                        }
                    });
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        let connection = std::thread::Builder::new().name("rtnetlink".to_owned()).spawn(drive).map_err(failed)?;
        let handle = opening.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into())).map_err(failed)?;
        Ok(Rtnl { handle, connection, _end: end })
    }

    /// Sends one request and waits for the kernel's verdict.
    async fn change(&self, message: RouteNetlinkMessage, flags: u16, action: impl Fn() -> String) -> Result<()> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut replies = self.handle.clone().request(request).map_err(|e| protocol(action(), e))?;
        while let Some(reply) = replies.next().await {
            if let NetlinkPayload::Error(error) = reply.payload
                && error.code.is_some()
            {
                let source = error.to_io();
                return Err(Error::Netlink { action: action(), source });
            }
        }
        // The connection keeps the acknowledgement to itself and only ends the replies; so it does when it dies.
        if self.connection.is_finished() {
            return Err(protocol(action(), "the connection was closed"));
        }
        Ok(())
    }

    /// Sends one dump request; a dump that the kernel reports as inconsistent (NLM_F_DUMP_INTR) is repeated.
    async fn dump(
        &self,
        message: impl Fn() -> RouteNetlinkMessage,
        action: &'static str,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let mut collected = Vec::new();
        for _ in 0..DUMP_TRIES {
            collected.clear();
            let mut interrupted = false;
            let mut request = NetlinkMessage::from(message());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut replies = self.handle.clone().request(request).map_err(|e| protocol(action, e))?;
            while let Some(reply) = replies.next().await {
                interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
                match reply.payload {
                    NetlinkPayload::InnerMessage(inner) => collected.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(Error::Netlink { action: action.to_owned(), source: error.to_io() });
                    }
                    _ => {}
                }
            }
            if !interrupted {
                break;
            }
        }
        Ok(collected)
    }

    /// All links of the namespace, with their counters.
    pub async fn links(&self) -> Result<Vec<LinkMessage>> {
        let replies = self.dump(|| RouteNetlinkMessage::GetLink(LinkMessage::default()), "list interfaces").await?;
        Ok(replies.into_iter().filter_map(as_link).collect())
    }

    /// The link of that name.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<LinkMessage>> {
        let mut query = LinkMessage::default();
        query.attributes.push(LinkAttribute::IfName(name.to_owned()));
        // Virtual functions' details are long and nobody here reads them; without the mask the kernel leaves them
        // out, but a request by name must hold some mask for old kernels to look at the name at all.
        query.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf]));
        let action = || format!("look up interface {name}");
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(query));
        request.header.flags = NLM_F_REQUEST;
        let mut replies = self.handle.clone().request(request).map_err(|e| protocol(action(), e))?;
        match replies.next().await.map(|reply| reply.payload) {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => Ok(Some(link)),
            Some(NetlinkPayload::Error(error)) => {
                let source = error.to_io();
                if source.raw_os_error() == Some(libc::ENODEV) {
                    return Ok(None);
                }
                Err(Error::Netlink { action: action(), source })
            }
            _ => Err(protocol(action(), "no link in the reply")),
        }
    }

    /// The link of that name's index, or [`Error::NoSuchLink`].
    pub async fn link_index(&self, name: &str) -> Result<u32> {
        match self.link_by_name(name).await? {
            Some(link) => Ok(link.header.index),
            None => Err(Error::NoSuchLink { name: name.to_owned() }),
        }
    }

    /// Creates a link; it must not exist.
    pub async fn add_link(&self, link: LinkMessage, name: &str) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change(RouteNetlinkMessage::NewLink(link), flags, || format!("cannot create interface {name}")).await
    }

    /// Changes an existing link to what the message says.
    pub async fn set_link(&self, link: LinkMessage, name: &str) -> Result<()> {
        self.change(RouteNetlinkMessage::SetLink(link), 0, || format!("cannot configure interface {name}")).await
    }

    /// Changes what is particular to an existing link's kind, which RTM_SETLINK passes over.
    pub async fn set_kind_data(&self, name: &str, kind: InfoKind, data: InfoData) -> Result<()> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
        ];
        self.change(RouteNetlinkMessage::NewLink(link), 0, || format!("cannot configure interface {name}")).await
    }

    /// Changes an existing link's attributes, and raises it if `up`.
    pub async fn set_attributes(&self, index: u32, name: &str, up: bool, attributes: Vec<LinkAttribute>) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        if up {
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
        }
        link.attributes = attributes;
        self.set_link(link, name).await
    }

    /// Deletes a link by name in one request; `Ok(false)` if there is none.
    pub async fn delete_link(&self, name: &str) -> Result<bool> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let result =
            self.change(RouteNetlinkMessage::DelLink(link), 0, || format!("cannot delete interface {name}")).await;
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All addresses of the namespace.
    pub async fn addresses(&self) -> Result<Vec<AddressMessage>> {
        let replies =
            self.dump(|| RouteNetlinkMessage::GetAddress(AddressMessage::default()), "list addresses").await?;
        Ok(replies
            .into_iter()
            .filter_map(|reply| match reply {
                RouteNetlinkMessage::NewAddress(address) => Some(address),
                _ => None,
            })
            .collect())
    }

    /// Adds an address; one that is there already is left as it is.
    pub async fn add_address(&self, address: AddressMessage, what: &str) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let result =
            self.change(RouteNetlinkMessage::NewAddress(address), flags, || format!("cannot add address {what}")).await;
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Removes an address; one that is gone already is fine.
    pub async fn delete_address(&self, address: AddressMessage, what: &str) -> Result<()> {
        let result =
            self.change(RouteNetlinkMessage::DelAddress(address), 0, || format!("cannot remove address {what}")).await;
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    /// The routes of one family in all tables.
    pub async fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>> {
        let query = || {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            RouteNetlinkMessage::GetRoute(message)
        };
        let replies = self.dump(query, "list routes").await?;
        Ok(replies
            .into_iter()
            .filter_map(|reply| match reply {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            })
            .collect())
    }
}

fn as_link(reply: RouteNetlinkMessage) -> Option<LinkMessage> {
    match reply {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

fn protocol(action: impl Into<String>, message: impl ToString) -> Error {
    Error::Protocol { action: action.into(), message: message.to_string() }
}
