"""An index in an engine elsewhere: pushed there, searched there, with the answers of the index it came from.

    place = EnginePlace(Server("qdrant", "http://localhost:6333", "photos"))
    push(Index.open("photos.index"), place.server.collection(PUSHING))
    place.open(model).search("a dog on the beach", k=10)

What an engine has to offer is `collection.Collection`; its adapters are milvus.py, qdrant.py and lucene.py.
"""
