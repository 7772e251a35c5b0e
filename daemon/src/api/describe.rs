//! The words of the handlers' `utoipa::path` annotations: parameters and answers that many have in common.
//!
//! These types stand for something in the OpenAPI document; no value of them is ever made. What follows from something
//! else that a handler says, such as a 412 from `If-Match`, no handler has to say: `openapi::document` adds it.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use duet_client::api;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{AllOfBuilder, AnyOfBuilder, ArrayBuilder, Schema};
use utoipa::openapi::{Content, HeaderBuilder, Object, ObjectBuilder, Ref, RefOr, Required, ResponseBuilder, Type};
use utoipa::{IntoParams, IntoResponses, PartialSchema, ToSchema};

use super::response::status_of;
use crate::error::Kind;

type Responses = BTreeMap<String, RefOr<utoipa::openapi::Response>>;

/// A parameter that is text; those of paths are always required.
fn text(place: ParameterIn, name: &str, description: &str) -> Parameter {
    let required = if place == ParameterIn::Path { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(description))
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

macro_rules! parameters {
    ($($place:ident $type:ident { $($name:literal: $description:literal,)+ })+) => {$(
        #[doc = concat!($("`", $name, "`: ", $description, "\n\n"),+)]
        pub enum $type {}

        impl IntoParams for $type {
            fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
                vec![$(text(ParameterIn::$place, $name, $description)),+]
            }
        }
    )+};
}

parameters! {
    Path InstanceName { "name": "The instance's name.", }
    Path SnapshotName { "snapshot": "The snapshot's name, without the instance's.", }
    Path LogName { "file": "The log's file name.", }
    Path ProfileName { "name": "The profile's name.", }
    Path NetworkName { "name": "The network's name, or that of one of the host's other links.", }
    Path PoolName { "name": "The storage pool's name.", }
    Path ProjectName { "name": "The project's name: `default` is the only one.", }
    Path Fingerprint { "fingerprint": "The image's fingerprint, or as much of its beginning as only it has.", }
    Path AliasName { "name": "The alias; it may hold slashes, as in `debian/13`.", }
    Path OperationId { "id": "The operation's UUID.", }
    Path WarningId { "uuid": "The warning's UUID.", }

    Header IfMatch {
        "If-Match": "The ETag of the state that the change is meant for; without it anything goes.",
    }

    Header ImageFacts {
        "X-Incus-filename": "The file's name.",
        "X-Incus-public": "`true` for a public image.",
        "X-Incus-properties": "Properties beside the image's own, as an URL query.",
        "X-Incus-profiles": "An URL query with the key `profile`, repeated.",
        "X-Incus-aliases": "An URL query with the key `alias`, repeated.",
        "X-Incus-fingerprint": "The fingerprint that is expected.",
    }

    Header FileFacts {
        "X-Incus-uid": "The owner's id inside of the instance; root for what is new.",
        "X-Incus-gid": "The group's id inside of the instance; root for what is new.",
        "X-Incus-mode": "The permissions, octal: `0644`.",
        "X-Incus-type": "`file` (the default), `directory` or `symlink`.",
        "X-Incus-write": "`overwrite` (the default) or `append`.",
    }

    Header Force {
        "X-Incus-force": "`true` deletes a directory with all that is in it.",
    }
}

/// What an answer's `metadata` is.
pub trait Metadata {
    /// Its schema, or a reference to it.
    fn metadata() -> RefOr<Schema>;
}

impl<T: ToSchema> Metadata for T {
    fn metadata() -> RefOr<Schema> {
        Ref::from_schema_name(T::name()).into()
    }
}

/// A path or a name.
pub enum Text {}

impl Metadata for Text {
    fn metadata() -> RefOr<Schema> {
        Object::with_type(Type::String).into()
    }
}

/// A list.
pub struct Many<T>(PhantomData<T>);

impl<T: Metadata> Metadata for Many<T> {
    fn metadata() -> RefOr<Schema> {
        ArrayBuilder::new().items(T::metadata()).into()
    }
}

/// Lists by some word.
pub struct Grouped<T>(PhantomData<T>);

impl<T: Metadata> Metadata for Grouped<T> {
    fn metadata() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Object).additional_properties(Some(Many::<T>::metadata())).into()
    }
}

/// One or the other.
pub struct Either<A, B>(PhantomData<(A, B)>);

impl<A: Metadata, B: Metadata> Metadata for Either<A, B> {
    fn metadata() -> RefOr<Schema> {
        AnyOfBuilder::new().item(A::metadata()).item(B::metadata()).into()
    }
}

/// The envelope with this metadata.
pub fn envelope(metadata: RefOr<Schema>) -> Content {
    let envelope = Ref::from_schema_name(api::Response::name());
    let metadata = ObjectBuilder::new().schema_type(Type::Object).property("metadata", metadata);
    Content::new(Some(Schema::AllOf(AllOfBuilder::new().item(envelope).item(metadata).build())))
}

/// Adds a header to an answer.
pub fn header(builder: ResponseBuilder, name: &str, description: &str) -> ResponseBuilder {
    let header = HeaderBuilder::new().schema(Some(Object::with_type(Type::String))).description(Some(description));
    builder.header(name, header.build())
}

/// A body that is no JSON: OpenAPI 3.1 has no schema for those.
pub fn bytes() -> Content {
    Content::new(None::<RefOr<Schema>>)
}

fn done<T: Metadata>() -> ResponseBuilder {
    ResponseBuilder::new().description("Done.").content("application/json", envelope(T::metadata()))
}

fn ok(response: ResponseBuilder) -> Responses {
    BTreeMap::from([("200".to_owned(), response.build().into())])
}

/// 200 with this metadata.
pub struct Sync<T>(PhantomData<T>);

impl<T: Metadata> IntoResponses for Sync<T> {
    fn responses() -> Responses {
        ok(done::<T>())
    }
}

/// 200 with the paths of a collection, or with its objects.
pub type Listing<T> = Sync<Either<Many<Text>, Many<T>>>;

/// 200 with this metadata, and its tag.
pub struct Tagged<T>(PhantomData<T>);

impl<T: Metadata> IntoResponses for Tagged<T> {
    fn responses() -> Responses {
        ok(header(done::<T>(), "ETag", "The tag of this state, for If-Match."))
    }
}

/// 200 with this metadata, or with bytes as they are.
pub struct JsonOrBytes<T>(PhantomData<T>);

impl<T: Metadata> IntoResponses for JsonOrBytes<T> {
    fn responses() -> Responses {
        ok(done::<T>().content("application/octet-stream", bytes()))
    }
}

/// The two files of a split image.
pub enum ImageForm {}

impl PartialSchema for ImageForm {
    fn schema() -> RefOr<Schema> {
        let file = |description| {
            let file = ObjectBuilder::new().schema_type(Type::String).content_media_type("application/octet-stream");
            file.description(Some(description))
        };
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some("The files of an image, in this order."))
            .property("metadata", file("The metadata; all of the image where there is no `rootfs`."))
            .property("rootfs", file("The root filesystem."))
            .required("metadata")
            .into()
    }
}

impl ToSchema for ImageForm {}

/// 200 with an image.
pub enum ImageFiles {}

impl IntoResponses for ImageFiles {
    fn responses() -> Responses {
        let form = Content::new(Some(Ref::from_schema_name(ImageForm::name())));
        let files = ResponseBuilder::new()
            .description("The image's file, or both files of a split one.")
            .content("application/octet-stream", bytes())
            .content("multipart/form-data", form);
        ok(files)
    }
}

/// 200 with the headers that describe a file.
pub enum FileHead {}

/// The same, and the file.
pub enum FileContent {}

fn with_facts(response: ResponseBuilder) -> Responses {
    let facts = [
        ("X-Incus-uid", "The owner's id inside of the instance."),
        ("X-Incus-gid", "The group's id inside of the instance."),
        ("X-Incus-mode", "The permissions, octal: `0644`."),
        ("X-Incus-type", "`file`, `directory` or `symlink`."),
        ("X-Incus-modified", "When it was last changed."),
    ];
    ok(facts.into_iter().fold(response, |response, (name, description)| header(response, name, description)))
}

impl IntoResponses for FileHead {
    fn responses() -> Responses {
        with_facts(
            ResponseBuilder::new()
                .description("What stands there. Each header also has a twin that begins with `X-LXD-`."),
        )
    }
}

impl IntoResponses for FileContent {
    fn responses() -> Responses {
        let content = ResponseBuilder::new()
            .description("A file's bytes, a link's target, or the names in a directory.")
            .content("application/octet-stream", bytes())
            .content("application/json", envelope(Many::<Text>::metadata()));
        with_facts(content)
    }
}

/// Answers that are the same wherever they are given; `openapi::document` says what they are.
macro_rules! named {
    ($($type:ident = $status:expr, $name:literal;)+) => {$(
        #[doc = concat!("The answer `", $name, "`.")]
        pub enum $type {}

        impl IntoResponses for $type {
            fn responses() -> Responses {
                BTreeMap::from([($status.to_string(), Ref::from_response_name($name).into())])
            }
        }
    )+};
}

named! {
    Empty = 200, "EmptySyncResponse";
    Bytes = 200, "Bytes";
    Created = 201, "Created";
    Accepted = 202, "Operation";
    Websocket = 101, "Websocket";
    Forbidden = status_of(Kind::Forbidden).as_u16(), "Forbidden";
    RequestTimeout = status_of(Kind::Timeout).as_u16(), "RequestTimeout";
    Conflict = status_of(Kind::Conflict).as_u16(), "Conflict";
    ContentTooLarge = status_of(Kind::TooLarge).as_u16(), "ContentTooLarge";
    NotImplemented = status_of(Kind::Unsupported).as_u16(), "NotImplemented";
}
