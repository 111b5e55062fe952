import json


def listed(venv):
    return {one["id"]: one for one in json.loads(venv.modularbase("pack", "list", "--json"))["packs"]}


def test_a_pack_comes_by_bare_name_with_its_base_and_goes_again(venv):
    said = venv.install("modularbase-pack-python")
    assert "Successfully installed modularbase-0." in said
    packs = listed(venv)
    assert list(packs) == ["tiny-base", "tiny-router", "general_chat", "python_code"]
    assert packs["python_code"]["distribution"] == "modularbase-pack-python"
    assert packs["python_code"]["directory"].startswith(str(venv.folder))

    venv.pip("uninstall", "-y", "modularbase-pack-python")
    assert list(listed(venv)) == ["tiny-base", "tiny-router", "general_chat"]

    venv.install("modularbase-pack-python")
    assert "python_code" in listed(venv)
